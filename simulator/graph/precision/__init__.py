"""How the operands of narrow GEMMs are made."""
