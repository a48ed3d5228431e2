package delivery

import (
	"sync"
	"time"
)

// memory is a set of keys that are forgotten after a time, and some of them earlier when there are too many. It holds
// what was learned about hosts: it may be wrong at any time, and nothing breaks when it is lost.
type memory[K comparable] struct {
	limit int
	keep  time.Duration

	mu    sync.Mutex
	until map[K]time.Time
}

func newMemory[K comparable](limit int, keep time.Duration) *memory[K] {
	return &memory[K]{limit: limit, keep: keep, until: make(map[K]time.Time)}
}

func (m *memory[K]) add(key K) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, exists := m.until[key]; !exists && len(m.until) >= m.limit {
		m.makeRoom()
	}
	m.until[key] = time.Now().Add(m.keep)
}

// makeRoom drops what is over, and at least a tenth of the whole, so that it runs seldom.
func (m *memory[K]) makeRoom() {
	now, room := time.Now(), m.limit/10+1
	for key, until := range m.until {
		if now.After(until) {
			delete(m.until, key)
		}
	}
	for key := range m.until {
		if m.limit-len(m.until) >= room {
			return
		}
		delete(m.until, key)
	}
}

func (m *memory[K]) remove(key K) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.until, key)
}

func (m *memory[K]) has(key K) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	until, exists := m.until[key]
	if exists && time.Now().After(until) {
		delete(m.until, key)
		return false
	}
	return exists
}
