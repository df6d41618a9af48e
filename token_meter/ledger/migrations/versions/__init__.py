"""One file per revision of the tables. A released one is never edited; name a new one in `migrate.REVISIONS`."""
