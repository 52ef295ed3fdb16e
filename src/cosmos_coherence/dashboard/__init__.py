"""One server-rendered page with the state of the stack."""
