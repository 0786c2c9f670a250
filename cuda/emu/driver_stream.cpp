// The emulated driver API: streams, events, graphs. Work is done before the call that starts it
// returns, unless the stream is being captured: then it is kept, and done whenever the graph is
// launched.
#include <chrono>
#include <memory>
#include <vector>

#include "emu/driver.hpp"

struct EmuGraph {
  std::vector<std::function<CUresult()>> nodes;
  bool spoilt = false;
  // Those that are captured into it, the first begun, others by waiting for its events.
  std::vector<CUstream> streams;
  std::vector<CUevent> events;    // recorded into it while it is captured
};
struct EmuGraphExec {
  std::vector<std::function<CUresult()>> nodes;
};
struct EmuStream {
  EmuGraph* capture = nullptr;
};
struct EmuEvent {
  bool timed, recorded = false;
  std::chrono::steady_clock::time_point at;
  EmuGraph* capture;  // under way, that it was last recorded into
};

namespace emu {

namespace {
thread_local EmuGraph* capturing = nullptr;  // begun by this host thread

CUresult unsupported(EmuGraph* graph, const char* what) {
  graph->spoilt = true;
  return error(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED,
               std::string(what) + " while a stream is captured");
}
}  // namespace

CUresult submit(CUstream stream, std::function<CUresult()> work) {
  if (CUresult e = check_device()) return e;
  if (!stream || !stream->capture) return work();
  stream->capture->nodes.push_back(std::move(work));
  return CUDA_SUCCESS;
}

CUresult forbid_capture(const char* what) {
  return capturing ? unsupported(capturing, what) : CUDA_SUCCESS;
}

}  // namespace emu

using namespace emu;

extern "C" {

CUresult emu_cuStreamCreate(CUstream* stream, unsigned) {
  if (CUresult e = need_context()) return e;
  *stream = new EmuStream;
  return CUDA_SUCCESS;
}

CUresult emu_cuStreamDestroy_v2(CUstream stream) {
  delete stream;
  return CUDA_SUCCESS;
}

CUresult emu_cuStreamSynchronize(CUstream stream) {
  if (stream && stream->capture) return unsupported(stream->capture, "cuStreamSynchronize");
  if (CUresult e = check_device()) return e;
  return check_guards();
}

CUresult emu_cuStreamWaitEvent(CUstream stream, CUevent event, unsigned) {
  if (!stream || !event)
    return error(CUDA_ERROR_INVALID_HANDLE, "cuStreamWaitEvent: no stream or event");
  // Waiting for an event of a capture joins it.
  if (event->capture && !stream->capture) {
    stream->capture = event->capture;
    event->capture->streams.push_back(stream);
  }
  return CUDA_SUCCESS;
}

CUresult emu_cuEventCreate(CUevent* event, unsigned flags) {
  if (CUresult e = need_context()) return e;
  constexpr unsigned DISABLE_TIMING = 2;
  *event = new EmuEvent{!(flags & DISABLE_TIMING), false, {}, nullptr};
  return CUDA_SUCCESS;
}

CUresult emu_cuEventDestroy_v2(CUevent event) {
  if (event->capture) std::erase(event->capture->events, event);
  delete event;
  return CUDA_SUCCESS;
}

CUresult emu_cuEventRecord(CUevent event, CUstream stream) {
  if (!event) return error(CUDA_ERROR_INVALID_HANDLE, "cuEventRecord: no event");
  if (event->capture) std::erase(event->capture->events, event);
  event->capture = stream ? stream->capture : nullptr;
  if (event->capture) {
    event->capture->events.push_back(event);
    return CUDA_SUCCESS;
  }
  event->recorded = true;
  event->at = std::chrono::steady_clock::now();
  return CUDA_SUCCESS;
}

CUresult emu_cuEventQuery(CUevent event) {
  if (event->capture) return unsupported(event->capture, "cuEventQuery");
  return check_device();
}

CUresult emu_cuEventSynchronize(CUevent event) {
  if (event->capture) return unsupported(event->capture, "cuEventSynchronize");
  return CUDA_SUCCESS;
}

CUresult emu_cuEventElapsedTime_v2(float* ms, CUevent start, CUevent end) {
  if (!start->timed || !end->timed || !start->recorded || !end->recorded)
    return error(CUDA_ERROR_INVALID_HANDLE,
                 "cuEventElapsedTime: an event was not recorded, or not for timing");
  *ms = std::chrono::duration<float, std::milli>(end->at - start->at).count();
  return CUDA_SUCCESS;
}

CUresult emu_cuEventElapsedTime(float* ms, CUevent start, CUevent end) {
  return emu_cuEventElapsedTime_v2(ms, start, end);
}

CUresult emu_cuStreamBeginCapture_v2(CUstream stream, int) {
  if (!stream)
    return error(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "the default stream cannot be captured");
  if (stream->capture || capturing)
    return error(CUDA_ERROR_ILLEGAL_STATE, "a capture is under way already");
  capturing = stream->capture = new EmuGraph;
  stream->capture->streams.push_back(stream);
  return CUDA_SUCCESS;
}

CUresult emu_cuStreamEndCapture(CUstream stream, CUgraph* graph) {
  EmuGraph* made = stream ? stream->capture : nullptr;
  *graph = nullptr;
  if (!made || made != capturing || made->streams[0] != stream)
    return error(CUDA_ERROR_ILLEGAL_STATE,
                 "no capture was begun on this stream by this host thread");
  capturing = nullptr;
  for (CUstream s : made->streams) s->capture = nullptr;
  for (CUevent e : made->events) e->capture = nullptr;
  if (made->spoilt) {
    delete made;
    return error(CUDA_ERROR_STREAM_CAPTURE_INVALIDATED,
                 "a call that a capture does not allow was made");
  }
  *graph = made;
  return CUDA_SUCCESS;
}

CUresult emu_cuGraphInstantiateWithFlags(CUgraphExec* exec, CUgraph graph, unsigned long long) {
  *exec = new EmuGraphExec{graph->nodes};
  return CUDA_SUCCESS;
}

CUresult emu_cuGraphLaunch(CUgraphExec exec, CUstream stream) {
  return submit(stream, [nodes = exec->nodes] {
    for (const auto& node : nodes)
      if (CUresult e = node()) return e;
    return CUDA_SUCCESS;
  });
}

CUresult emu_cuGraphExecDestroy(CUgraphExec exec) {
  delete exec;
  return CUDA_SUCCESS;
}

CUresult emu_cuGraphDestroy(CUgraph graph) {
  delete graph;
  return CUDA_SUCCESS;
}

}  // extern "C"
