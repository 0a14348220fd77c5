"""Errors, files, records, statistics, tables, figures: the room that all others use. It imports none of them."""
