"""How the head is computed: exact, block by block."""
