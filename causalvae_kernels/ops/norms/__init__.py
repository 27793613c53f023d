"""What the norm ops share: checks, the group norm itself, its gradient, the activation."""
