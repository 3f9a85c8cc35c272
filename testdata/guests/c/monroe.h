/* The guest ABI of monroe, version 1, for C. Normative: abi/SPEC.md.
 *
 * No libc is needed: clang --target=wasm32 -nostdlib is enough. A guest exports
 * monroe_run with MONROE_EXPORT and calls the host by the four imports below. */
#ifndef MONROE_H
#define MONROE_H

typedef unsigned int monroe_u32;
typedef unsigned long long monroe_u64;

#define MONROE_IMPORT(name) \
	__attribute__((import_module("monroe_v1"), import_name(name))) extern
#define MONROE_EXPORT(name) __attribute__((export_name(name), visibility("default")))

/* Handles that every run has. */
#define MONROE_INPUT 0u
#define MONROE_RESULT 1u

/* call makes one request. The result is code << 32 | n: with code 0, n bytes of
 * the reply are at out; with code 1 the reply did not fit and n is a handle. The
 * call is done either way: never make it again for a larger buffer. */
MONROE_IMPORT("call")
monroe_u64 monroe_call(const void *req, monroe_u32 req_len, void *out, monroe_u32 out_cap);

/* read copies the next bytes of a handle and returns how many; 0 is the end. */
MONROE_IMPORT("read")
monroe_u64 monroe_read(monroe_u32 handle, void *ptr, monroe_u32 cap);

/* write appends to the result (handle 1). */
MONROE_IMPORT("write")
monroe_u64 monroe_write(monroe_u32 handle, const void *ptr, monroe_u32 len);

/* close gives a parked reply back. Closing twice traps. */
MONROE_IMPORT("close")
monroe_u32 monroe_close(monroe_u32 handle);

static inline int monroe_parked(monroe_u64 result) { return (result >> 32) == 1; }

/* monroe_read_all reads a handle to its end or until the buffer is full. */
static inline monroe_u32 monroe_read_all(monroe_u32 handle, char *ptr, monroe_u32 cap)
{
	monroe_u32 have = 0, n;
	while (have < cap && (n = (monroe_u32)monroe_read(handle, ptr + have, cap - have)) > 0)
		have += n;
	return have;
}

/* monroe_ask makes a request and returns the length of the reply in out, also when
 * the host parked it. What exceeds cap is dropped. */
static inline monroe_u32 monroe_ask(const char *req, monroe_u32 req_len, char *out, monroe_u32 cap)
{
	monroe_u64 r = monroe_call(req, req_len, out, cap);
	monroe_u32 n = (monroe_u32)r;
	if (monroe_parked(r)) {
		monroe_u32 handle = n;
		n = monroe_read_all(handle, out, cap);
		monroe_close(handle);
	}
	return n;
}

#endif
