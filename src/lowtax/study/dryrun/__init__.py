"""`lowtax run RECIPE --dry-run`: resolve, check and count a recipe offline."""
