"""What is in a message of the Data Hub, and how it is protected. Pure."""
