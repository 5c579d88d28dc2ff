"""Disposable systemd hosts on this machine, and the local tracker that their errors go to."""
