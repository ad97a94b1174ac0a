"""The product under load: a real `fleet-server`, simulated nodes in processes of their own, an operator in another."""
