"""Many runs that differ in a few settings, at equal updates: the method's ablation, or one's own list."""
