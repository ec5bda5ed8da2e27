"""What every test of an operator needs, whatever runs it: operands, a model of one node, the results to expect."""
