import type { RunningProxy as DataPlane } from '../proxy/proxy.ts';
import type { Figure } from './metrics.ts';

export function proxyFigures(proxy: Pick<DataPlane, 'status'>): Figure[] {
  const current = (name: string, help: string, read: () => number): Figure => ({ name, help, kind: 'current', read });
  const total = (name: string, help: string, read: () => number): Figure => ({ name, help, kind: 'total', read });
  return [
    current('holdfast_clients', 'Clients connected', () => proxy.status().clients),
    total('holdfast_clients_total', 'Clients accepted', () => proxy.status().clientsTotal),
    total(
      'holdfast_clients_refused_total',
      'Clients refused at limits.clientsMax',
      () => proxy.status().clientsRefused,
    ),
    total('holdfast_requests_total', 'Requests of clients', () => proxy.status().requests),
    total('holdfast_exchanges_total', 'Requests that interceptors looked into', () => proxy.status().exchanges),
    total(
      'holdfast_protocol_errors_total',
      'Clients closed for malformed requests',
      () => proxy.status().protocolErrors,
    ),
    total('holdfast_overflows_total', 'Clients closed at a buffer limit', () => proxy.status().overflows),
    current('holdfast_lanes', 'Connections to the KV store', () => proxy.status().lanes),
    total(
      'holdfast_lanes_retired_total',
      'Least recently used connections to the KV store closed at limits.sharedLanesMax',
      () => proxy.status().lanesRetired,
    ),
    current('holdfast_kv_reachable', '1 while the KV store can be reached', () =>
      proxy.status().upstreamReachable ? 1 : 0,
    ),
    total('holdfast_kv_connects_total', 'Connections made to the KV store', () => proxy.status().upstreamConnects),
    total('holdfast_kv_losses_total', 'Connections to the KV store that broke', () => proxy.status().upstreamLosses),
  ];
}
