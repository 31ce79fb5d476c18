"""Many runs that differ in a few settings, at equal updates: the ablation of the method, or a list of one's own."""
