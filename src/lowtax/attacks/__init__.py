"""Attacks on prompts: one file for each, under one interface."""
