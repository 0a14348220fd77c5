"""A study as units of work that several processes or machines do."""
