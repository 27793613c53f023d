"""What every op shares: the op contract, selection, precision, checks, errors. Knows torch, knows no op."""
