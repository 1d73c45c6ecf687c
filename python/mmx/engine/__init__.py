"""The loop that joins scheduler and runner, the process around it, and the client on the other side."""
