"""Pictures and tables of what happens inside."""
