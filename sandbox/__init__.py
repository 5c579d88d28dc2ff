"""Disposable systemd hosts on this machine, and the local tracker that receives their errors."""
