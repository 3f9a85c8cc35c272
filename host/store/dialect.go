package store

import (
	"database/sql"
	"strconv"
	"strings"
	"sync"
	"time"
)

// dialect is everything in which the two databases differ after a store is open. The
// statements of Tx are the same for both.
type dialect struct {
	begin string
	// fence reads the epoch (ws), and keeps it as it is until the transaction ends.
	fence string
	// renew is fence and gives the lease a new term (ms, ws, epoch).
	renew string
	read  sql.TxOptions
	// rewrite turns the ? of a statement into what the database knows.
	rewrite func(query string) string
	// control runs a statement that begins or ends a transaction or a savepoint.
	control func(s *Store, stmt string) error
	// writing is how the writer's transaction is spoken to.
	writing func(*Store) querier
	// settle waits for what a function left under way. After an error the transaction
	// takes nothing but an end, of itself or of the savepoint.
	settle func(*Store) error
	// giveUp ends the lease before its term.
	giveUp func(*Store) error
}

// numbered replaces each ? outside of quotes by $1, $2 and so on.
func numbered(query string) string {
	if v, ok := numberedOnes.Load(query); ok {
		return v.(string)
	}
	var out strings.Builder
	n, quoted := 0, false
	for i := range len(query) {
		switch c := query[i]; {
		case c == '\'':
			quoted = !quoted
			out.WriteByte(c)
		case c == '?' && !quoted:
			n++
			out.WriteString("$" + strconv.Itoa(n))
		default:
			out.WriteByte(c)
		}
	}
	numberedOnes.Store(query, out.String())
	return out.String()
}

var numberedOnes sync.Map // the statements are constants of this package, so it is bounded

// lease is a term that has to be renewed. A nil lease never ends.
type lease struct {
	ttl   time.Duration
	began time.Time // of the last renewal; of whoever has the turn
	tick  *time.Ticker
	end   *time.Timer // fires when the term is over by this machine's clock
}

// newLease starts the term at the time when it was asked for, so that it ends here
// before it ends in the database.
func newLease(ttl time.Duration, asked time.Time, lost func()) *lease {
	return &lease{
		ttl: ttl, began: asked, tick: time.NewTicker(ttl / 3),
		end: time.AfterFunc(time.Until(asked.Add(ttl)), lost),
	}
}

func (l *lease) isDue() bool { return l != nil && time.Since(l.began) >= l.ttl/4 }

func (l *lease) extend(asked time.Time) {
	l.began = asked
	l.end.Reset(time.Until(asked.Add(l.ttl)))
}

func (l *lease) stop() {
	if l != nil {
		l.tick.Stop()
		l.end.Stop()
	}
}
