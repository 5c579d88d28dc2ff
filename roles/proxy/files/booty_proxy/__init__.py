"""The proxy of a host: nginx in units of Booty's own, in front of every app with `app_domains`.

The package needs `booty_host` and the standard library. The controller sends both over standard input; the host keeps
a copy for the timers, `/usr/local/lib/booty-front.pyz`.
"""
