"""PostgreSQL: the transfer store and the records of operation."""
