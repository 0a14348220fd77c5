"""What every room uses: errors, files, records, statistics, tables, figures. Imports nothing of ours."""
