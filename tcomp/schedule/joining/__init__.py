"""How results of several blocks become one."""
