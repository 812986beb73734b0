"""One adapter a port; only ``process`` starts a program."""
