package account

import (
	"container/list"
	"time"
)

// table is a map whose keys come from outside: what was not touched for a while
// is forgotten, and beyond its bound the one that was touched longest ago goes.
// It is not safe for concurrent use.
type table[K comparable, V any] struct {
	most  int
	idle  time.Duration
	items map[K]*list.Element // of *item[K, V]
	order *list.List          // touched last is in front
}

type item[K comparable, V any] struct {
	key     K
	value   V
	touched time.Time
}

func newTable[K comparable, V any](most int, idle time.Duration) *table[K, V] {
	return &table[K, V]{most: most, idle: idle, items: make(map[K]*list.Element), order: list.New()}
}

// get finds a value without touching it.
func (t *table[K, V]) get(key K, now time.Time) (value V, ok bool) {
	e := t.items[key]
	if e == nil {
		return value, false
	}
	it := e.Value.(*item[K, V])
	if now.Sub(it.touched) >= t.idle {
		t.remove(e)
		return value, false
	}
	return it.value, true
}

// put stores a value and touches it.
func (t *table[K, V]) put(key K, value V, now time.Time) {
	if e := t.items[key]; e != nil {
		it := e.Value.(*item[K, V])
		it.value, it.touched = value, now
		t.order.MoveToFront(e)
		return
	}
	t.items[key] = t.order.PushFront(&item[K, V]{key, value, now})
	for e := t.order.Back(); e != nil && (len(t.items) > t.most || now.Sub(e.Value.(*item[K, V]).touched) >= t.idle); e = t.order.Back() {
		t.remove(e)
	}
}

func (t *table[K, V]) delete(key K) {
	if e := t.items[key]; e != nil {
		t.remove(e)
	}
}

func (t *table[K, V]) remove(e *list.Element) {
	delete(t.items, e.Value.(*item[K, V]).key)
	t.order.Remove(e)
}

func (t *table[K, V]) len() int { return len(t.items) }
