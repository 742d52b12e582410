"""One Python file and one SQL file for each step; released ones never change."""
