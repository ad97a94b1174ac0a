"""What both ends of a node's stream tell gRPC about its transport."""

WINDOW_BYTES = 256 * 1024
"""What may be under way to a reader, per stream: four full telemetry frames, and 2.5 MB/s at 100 ms."""

FIXED_WINDOW = (
    # gRPC sizes windows by measuring the path: after each message that reaches an idle connection it sends an HTTP/2
    # ping and reads the answer. For streams that say little, seldom, that is more work than the messages are.
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", WINDOW_BYTES),
)
