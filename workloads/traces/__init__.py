"""Traces of requests that are shipped; `make_chat` wrote them."""
