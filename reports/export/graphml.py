"""Op graphs as GraphML, which networkx, Gephi, yEd and Cytoscape read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import networkx as nx

from reports.export.files import replacing
from simulator.studies.block_graph import BlockGraph


def write_graphml(graphs: Sequence[BlockGraph], name: str, file: Path) -> None:
    """Write the graphs of the job `name` as one; of several, nodes begin with their action: `F/attn.q_a.fwd`."""
    whole: nx.DiGraph[str] = nx.DiGraph()
    for one in graphs:
        first = f"{one.action}/" if len(graphs) > 1 else ""
        whole.add_nodes_from((first + node, data) for node, data in one.graph.nodes(data=True))
        whole.add_edges_from((first + a, first + b, data) for a, b, data in one.graph.edges(data=True))
    whole.graph = {
        "job": name,
        "block": str(graphs[0].block),
        **{f"seconds_{one.action}": one.seconds for one in graphs},
    }
    with replacing(file) as out:
        nx.write_graphml_xml(whole, out, infer_numeric_types=True)
        out.write(b"\n")
