"""The reference trading core as a process of its own, behind a transport."""
