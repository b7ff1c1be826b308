"""A Flask server around the package ``fer``, as its users write one; run in fer's own environment.

    bench-out/peer-venv/bin/python -m pip install flask
    bench-out/peer-venv/bin/python benchmarks/peer_server.py --port 8001 [--mtcnn]

``POST /v1/predict`` takes a photo as the body and returns what ``FER.detect_emotions`` returns.
"""

from __future__ import annotations

import argparse
import os
import threading
from importlib import import_module
from typing import Any


def main() -> None:
    """Serve until the process is ended."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--mtcnn", action="store_true", help="find faces by MTCNN instead of Haar cascades")
    given = parser.parse_args()
    flask = import_module("flask")
    cv2 = import_module("cv2")
    np = import_module("numpy")
    serving = import_module("werkzeug.serving")
    detector = import_module("fer.fer").FER(mtcnn=given.mtcnn)
    one_at_a_time = threading.Lock()  # a TFLite interpreter serves one thread
    app = flask.Flask("fer")

    def predict() -> Any:
        picture = cv2.imdecode(np.frombuffer(flask.request.get_data(), np.uint8), cv2.IMREAD_COLOR)
        if picture is None:
            return {"error": "unreadable"}, 422
        with one_at_a_time:
            faces = detector.detect_emotions(picture)
        return {"faces": [{"box": [int(v) for v in f["box"]], "emotions": f["emotions"]} for f in faces]}

    app.add_url_rule("/v1/predict", view_func=predict, methods=["POST"])
    app.add_url_rule("/healthz", view_func=lambda: "ok")
    serving.WSGIRequestHandler.protocol_version = "HTTP/1.1"
    serving.WSGIRequestHandler.log_request = lambda *_: None
    app.run("127.0.0.1", given.port, threaded=True)


if __name__ == "__main__":
    main()
