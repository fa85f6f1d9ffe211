"""How fast it is: loads against our own service and against peers, and the report of them."""
