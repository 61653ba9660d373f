"""A stand-in for the competition's server that talks gRPC: the same class and method names, one worker thread."""
import os
from concurrent.futures import ThreadPoolExecutor

import grpc

from kaggle_evaluation.cmi_gateway import METHOD, PORT, CMIGateway, unpacked

class CMIInferenceServer(grpc.GenericRpcHandler):
    def __init__(self, *endpoints):
        self.endpoints = {f.__name__: f for f in endpoints}
        self.server = None

    def service(self, call):
        return grpc.unary_unary_rpc_method_handler(self.answer) if call.method == METHOD else None

    def answer(self, request, context):
        name, frames = unpacked(request)
        if name == "stop":
            self.server.stop(0.2)
            return b""
        label = self.endpoints[name](*frames)
        if type(label) is not str:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"{name} must return a string, not {type(label)}")
        return label.encode()

    def listen(self):
        unlimited = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
        self.server = grpc.server(ThreadPoolExecutor(1), (self,), options=unlimited)
        if not self.server.add_insecure_port(f"127.0.0.1:{PORT}"):
            raise RuntimeError(f"port {PORT} is taken")
        self.server.start()

    def serve(self):
        "The rerun: answers until the gateway has asked everything."
        if os.getenv("KAGGLE_IS_COMPETITION_RERUN") is None:
            raise RuntimeError("serve() is for the rerun")
        self.listen()
        self.server.wait_for_termination()

    def run_local_gateway(self, data_paths=None):
        self.listen()
        try:
            CMIGateway(data_paths).run()
        finally:
            self.server.stop(0)
