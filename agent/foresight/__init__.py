"""What ``check`` says beforehand: bytes per day and outbox days, and with ``--online`` whether all can be reached."""
