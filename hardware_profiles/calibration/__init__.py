"""Tables of kernel measurements and the script that fits the kernel parameters of the profiles to them."""
