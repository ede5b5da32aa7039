"""Reading back from the Data Hub what others sent to us."""
