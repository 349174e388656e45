"""The web page for people, below `/dashboard`: server-rendered, for whoever has an admin token.

`site` puts it together, `door` lets in, `session` says who is in, `view` renders; each other module
is a page. Everything that a page needs is files of this package: no other host is ever asked.
"""
