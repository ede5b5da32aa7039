"""Local control: the socket of the running agent, what it answers there, and who asks."""
