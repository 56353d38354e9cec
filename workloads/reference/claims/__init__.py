"""What the DeepSeek-V3 report claims and numerics can check: our values compared with theirs, with figures."""

from workloads.reference.claims.page import Claim, run_claims

__all__ = ["Claim", "run_claims"]
