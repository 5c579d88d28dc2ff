"""The controller's side of Booty. The plugins beside it are thin shims: each takes one class or function from here."""
