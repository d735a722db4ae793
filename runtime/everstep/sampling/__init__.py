"""Which rank takes which samples when: a pure schedule, the order of an epoch, and DataLoaders re-made around both."""
