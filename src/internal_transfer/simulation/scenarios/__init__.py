"""What the service must do, played against real server processes by `make demo` and by the system tests."""
