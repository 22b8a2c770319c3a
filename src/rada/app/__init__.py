"""The app: teach a model in the browser. Logic, server and page are apart.

`album` holds the images of a session, `ordering` says which to label next, `training` teaches and measures,
`session` joins them; `server` is what a browser talks to, and `page` what it shows, with Gradio.
"""
