"""Energy Web's Data Hub (DDHub) without a client gateway. Importing this package imports none of its modules."""
