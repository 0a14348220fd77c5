"""Reasoning exams, one file each: their questions, and how a finished answer is graded."""
