"""What figures, pages and tables show, taken out of a result: plain values, ready to be drawn."""
