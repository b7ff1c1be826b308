"""The HTTP service: photos, clips and webcam over HTTP, and the page that shows them."""
