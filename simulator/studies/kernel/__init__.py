"""One operation, asked for by name: what it costs on a GPU or a network, and a whole table of such questions."""

from simulator.studies.kernel.answer import Answer, SustainedLoad, answer
from simulator.studies.kernel.kernel_table import Table, TableRow, answer_table, misspelt, read_table
from simulator.studies.kernel.question import BadColumn, Question, question_from_text

__all__ = [
    "Answer",
    "BadColumn",
    "SustainedLoad",
    "Question",
    "Table",
    "TableRow",
    "answer",
    "answer_table",
    "misspelt",
    "question_from_text",
    "read_table",
]
