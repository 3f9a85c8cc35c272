/* echo returns its input. It is a guest without any runtime or library, to show
 * that the ABI needs neither Go nor libc, and it takes the paths that a guest in
 * another language is most likely to get wrong: a parked reply that is read in
 * small pieces, an empty read at the end, a status that tells of a refusal. */
#include "monroe.h"

#define LITERAL(s) s, sizeof(s) - 1

static char input[1 << 20]; /* the longest result */
static char reply[1 << 16];

/* has_ok reports whether a reply begins as every good one does. Replies are
 * canonical enough for that: an object with exactly one member. */
static int has_ok(const char *s, monroe_u32 n)
{
	return n >= 6 && s[0] == '{' && s[1] == '"' && s[2] == 'o' && s[3] == 'k' && s[4] == '"';
}

MONROE_EXPORT("monroe_run") int monroe_run(void)
{
	/* No buffer at all: the reply must be parked. */
	static const char describe[] = "{\"op\":\"host.describe\",\"v\":1,\"args\":{}}";
	monroe_u64 r = monroe_call(describe, sizeof(describe) - 1, reply, 0);
	if (!monroe_parked(r))
		return 10;
	monroe_u32 handle = (monroe_u32)r, have = 0, n;
	while (have + 16 <= sizeof reply && (n = (monroe_u32)monroe_read(handle, reply + have, 16)) > 0)
		have += n;
	if (monroe_close(handle) != 0 || !has_ok(reply, have))
		return 11;

	n = monroe_ask(LITERAL("{\"op\":\"run.progress\",\"v\":1,\"args\":{\"text\":\"Echoing\"}}"), reply, sizeof reply);
	if (!has_ok(reply, n))
		return 12;

	/* An op that no host knows is a reply, not a fault. */
	n = monroe_ask(LITERAL("{\"op\":\"echo.unknown\",\"v\":1}"), reply, sizeof reply);
	if (n == 0 || has_ok(reply, n))
		return 13;

	n = monroe_read_all(MONROE_INPUT, input, sizeof input);
	if (monroe_read(MONROE_INPUT, reply, sizeof reply) != 0)
		return 14; /* longer than a result may be */
	if ((monroe_u32)monroe_write(MONROE_RESULT, input, n) != n)
		return 15;
	return 0;
}
