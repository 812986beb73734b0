# in src/models/diffusion-gemma.cpp, dg_alloc_sc_embT: one product on a device, parts only on the host (NOT run on GPUs in this form with 0009)
s|const int64_t n_rows = 256; .*|const int64_t n_rows = buft != bufts[0] \&\& ggml_backend_buft_is_host(buft) ? 256 : n_embd;|
